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

  # An outage of Consul or Vault never fails a task: its templates keep what they rendered last, and ask again.
  template {
    consul_retry {
      attempts    = 0 # without a limit
      backoff     = "250ms"
      max_backoff = "2s"
    }

    vault_retry {
      attempts    = 0
      backoff     = "250ms"
      max_backoff = "2s"
    }
  }

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
  # Tokens of both do not expire, because Nomad cannot renew one; it revokes them when the allocation ends. It uses
  # the second for templates only. A service of ours logs in itself, by nomad-workloads.
  service_auth_method = "nomad-services"
  task_auth_method    = "nomad-templates"

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
  # Every second, the default, an executor for each task would read /proc for figures that nothing collects.
  collection_interval = "10s"
  # The metrics of an agent are public. These contain allocation ids, and nothing collects them.
  prefix_filter = ["-nomad.client.allocs"]
}
