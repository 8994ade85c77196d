# Read the own configuration; find the called services.
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
