# Read the own configuration and the own intentions; find the called services.
key "config/gateway" {
  policy = "read"
}

service "gateway" {
  policy     = "read"
  intentions = "read"
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
