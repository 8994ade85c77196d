# Consul, single node, everything refused that no policy allows.
# Ports, folders and tokens come from the stack's own file, rendered beside its state.

datacenter       = "dc1"
node_name        = "waypost-1"
server           = true
bootstrap_expect = 1
bind_addr        = "127.0.0.1"
client_addr      = "127.0.0.1"
log_level        = "WARN"
# A node that starts again is itself, whatever address it had before.
leave_on_terminate = false

ui_config {
  enabled = true
}

acl {
  enabled                  = true
  default_policy           = "deny"
  enable_token_persistence = true
}

connect {
  enabled = true
}

# Intentions are decided by their own default, apart from the ACL default.
default_intention_policy = "deny"

# A stranger's telemetry and update calls have no place on a private node.
disable_update_check = true

performance {
  raft_multiplier = 1
}
