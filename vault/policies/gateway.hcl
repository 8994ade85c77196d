# Read the public part of the token key; have the own certificate signed.
path "transit/keys/tokens" {
  capabilities = ["read"]
}

path "mesh/sign/gateway" {
  capabilities = ["update"]
}
