# Create the own database login, which cannot change the schema or a recorded event.
path "database/creds/order-service" {
  capabilities = ["read"]
}
