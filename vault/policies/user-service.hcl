# A database login of its own, and signatures under the token key.
path "database/creds/user-service" {
  capabilities = ["read"]
}

path "transit/sign/tokens" {
  capabilities = ["update"]
}

path "secret/data/user-service" {
  capabilities = ["read"]
}
