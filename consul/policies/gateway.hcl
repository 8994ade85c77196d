# Read the own configuration; find the called services, and follow their traffic rules.
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
