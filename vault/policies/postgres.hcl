# The password under which Vault makes logins.
path "secret/data/postgres" {
  capabilities = ["read"]
}
