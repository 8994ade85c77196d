# Nomad, server and client in one agent, everything refused that no policy allows.
# Ports, folders and tokens come from the stack's own file, rendered beside its state.

datacenter           = "dc1"
name                 = "waypost-1"
bind_addr            = "127.0.0.1"
log_level            = "WARN"
disable_update_check = true
# Tasks outlive the agent: an agent that starts again takes them up where they are.
leave_on_terminate = false
leave_on_interrupt = false

server {
  enabled          = true
  bootstrap_expect = 1
  raft_multiplier  = 1 # as for machines of production: a leader is there within a second, not five
}

client {
  enabled           = true
  network_interface = "lo"
  # A killed instance must be back within seconds, so a lost heartbeat is not what finds it: the client restarts it in place.
  gc_max_allocs = 60

  options = {
    # Asking a cloud for its metadata stops or slows an agent that is not in one.
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

# Workload identity: every service and task proves who it is with a token that Nomad signs.
consul {
  # Tokens of this one do not end: Nomad registers a service once, and has no way to renew the token of its checks.
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
  # Anybody may read the metrics of an agent. These name allocations, and nothing collects them.
  prefix_filter = ["-nomad.client.allocs"]
}
