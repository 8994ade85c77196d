# Consul, single node. It denies everything that no policy allows.
# Ports, folders and tokens are in a second file, which the stack writes into its state folder.

datacenter       = "dc1"
node_name        = "waypost-1"
server           = true
bootstrap_expect = 1
bind_addr        = "127.0.0.1"
client_addr      = "127.0.0.1"
log_level        = "WARN"
# A restarted agent stays the same node.
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

# Intentions have a default of their own, independent of the ACL default.
default_intention_policy = "deny"

# A private node sends no update checks to the vendor.
disable_update_check = true

performance {
  raft_multiplier = 1
}
