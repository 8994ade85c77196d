# Create the login that owns the schema. The service requests it only to apply migrations, and revokes it afterwards.
path "database/creds/order-service-owner" {
  capabilities = ["read"]
}
