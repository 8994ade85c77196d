# Read the own configuration; find the called services.
key "config/user-service" {
  policy = "read"
}

service "postgres" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
