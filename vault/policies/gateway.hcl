# The public half of the token key.
path "transit/keys/tokens" {
  capabilities = ["read"]
}
