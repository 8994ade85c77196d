# Read the password that Vault uses to create logins.
path "secret/data/postgres" {
  capabilities = ["read"]
}
