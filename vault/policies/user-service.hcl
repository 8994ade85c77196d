# Create the own database login, which cannot change the schema; sign with the token key, and read its public part; read
# the own secret; have the own certificate signed.
path "database/creds/user-service" {
  capabilities = ["read"]
}

path "transit/sign/tokens" {
  capabilities = ["update"]
}

path "transit/keys/tokens" {
  capabilities = ["read"]
}

path "secret/data/user-service" {
  capabilities = ["read"]
}

path "mesh/sign/user-service" {
  capabilities = ["update"]

  # Others, such as not_after, would override the longest validity of the role.
  allowed_parameters = {
    "csr"         = []
    "common_name" = []
    "ttl"         = []
  }
}
