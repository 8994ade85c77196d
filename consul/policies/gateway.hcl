# Reads its own configuration and finds the services it calls.
key "config/gateway" {
  policy = "read"
}

service "user-service" {
  policy = "read"
}

service "order-service" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
