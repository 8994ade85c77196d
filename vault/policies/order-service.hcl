# Create the own database login, which cannot change the schema or a recorded event; have the own certificate signed.
path "database/creds/order-service" {
  capabilities = ["read"]
}

path "mesh/sign/order-service" {
  capabilities = ["update"]
}
