# Read the public part of the token key; have the own certificate signed.
path "transit/keys/tokens" {
  capabilities = ["read"]
}

path "mesh/sign/gateway" {
  capabilities = ["update"]

  # Others, such as not_after, would override the longest validity of the role.
  allowed_parameters = {
    "csr"         = []
    "common_name" = []
    "ttl"         = []
  }
}
