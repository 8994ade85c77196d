# A database login of its own.
path "database/creds/order-service" {
  capabilities = ["read"]
}
