# Find the instances of the gateway.
service "gateway" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
