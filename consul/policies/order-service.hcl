# Read the own configuration and the own intentions; find the called services, and follow their traffic rules.
key "config/order-service" {
  policy = "read"
}

service "order-service" {
  policy     = "read"
  intentions = "read"
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
