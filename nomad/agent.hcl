# Nomad, server and client in one agent. It denies everything that no policy allows.
# Ports, folders and tokens are in a second file, which the stack writes into its state folder.

datacenter           = "dc1"
name                 = "waypost-1"
bind_addr            = "127.0.0.1"
log_level            = "WARN"
disable_update_check = true
# Tasks outlive the agent: after a restart it attaches to them again.
leave_on_terminate = false
leave_on_interrupt = false

server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1 # the value for production: a leader is elected within a second instead of five
}

client {
  enabled           = true
  network_interface = "lo"
  gc_max_allocs     = 60

  options = {
    # Requests for the metadata of a cloud delay the start of an agent outside of one.
    "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean"
  }
}

plugin "raw_exec" {
  config {
    enabled = true
  }
}

acl {
  enabled = true
}

ui {
  enabled = true
}

# Workload identity: each service and task authenticates with a token that Nomad signs.
consul {
  # Tokens of nomad-services do not expire: Nomad registers a service once and cannot renew the token of its checks.
  service_auth_method = "nomad-services"
  task_auth_method    = "nomad-workloads"

  service_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }

  task_identity {
    aud = ["consul.io"]
    ttl = "1h"
  }
}

vault {
  enabled               = true
  jwt_auth_backend_path = "jwt-nomad"
  create_from_role      = "none"

  default_identity {
    aud  = ["vault.io"]
    ttl  = "1h"
    file = false
    env  = false
  }
}

telemetry {
  # The metrics of an agent are public. These contain allocation ids, and nothing collects them.
  prefix_filter = ["-nomad.client.allocs"]
}
