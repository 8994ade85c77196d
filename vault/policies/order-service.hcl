# Create the own database login.
path "database/creds/order-service" {
  capabilities = ["read"]
}
