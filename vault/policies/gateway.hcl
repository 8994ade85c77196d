# Read the public part of the token key.
path "transit/keys/tokens" {
  capabilities = ["read"]
}
