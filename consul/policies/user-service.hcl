# Reads its own configuration and finds the services it calls.
key "config/user-service" {
  policy = "read"
}

service "postgres" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
