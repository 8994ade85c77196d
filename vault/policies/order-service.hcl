# Create the own database login, which cannot change the schema or a recorded event; read the public part of the token
# key; have the own certificate signed.
path "database/creds/order-service" {
  capabilities = ["read"]
}

path "transit/keys/tokens" {
  capabilities = ["read"]
}

path "mesh/sign/order-service" {
  capabilities = ["update"]

  # Others, such as not_after, would override the longest validity of the role.
  allowed_parameters = {
    "csr"         = []
    "common_name" = []
    "ttl"         = []
  }
}
