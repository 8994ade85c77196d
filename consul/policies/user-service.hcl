# Read the own configuration and the own intentions; find the called services.
key "config/user-service" {
  policy = "read"
}

service "user-service" {
  policy     = "read"
  intentions = "read"
}

service "postgres" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}
