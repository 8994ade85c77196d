# The Nomad agent registers itself, and takes services off whose tasks ended while it was away.
agent_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "write"
}
