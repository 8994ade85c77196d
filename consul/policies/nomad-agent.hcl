# Register the agent and its services; deregister services whose tasks ended while the agent was down.
agent_prefix "" {
  policy = "read"
}

node_prefix "" {
  policy = "read"
}

service_prefix "" {
  policy = "write"
}
