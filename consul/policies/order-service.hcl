# Reads its own configuration and finds the services it calls.
key "config/order-service" {
  policy = "read"
}

service "postgres" {
  policy = "read"
}

service "user-service" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
