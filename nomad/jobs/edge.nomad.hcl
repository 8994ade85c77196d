# The edge: Envoy listens on the documented ports and forwards to the healthy instances of the gateway.
# Its configuration is in nomad/edge; docs/adr/0015-envoy-at-the-edge.md explains it.

variable "python" { type = string }
variable "envoy_bin" { type = string }
variable "gateway_port" { type = number }
variable "gateway_https_port" { type = number } # in the mesh only
variable "mesh" { type = bool }                 # as the gateway is: by mutual TLS, or in plaintext
variable "trust_domain" { type = string }
variable "envoy_config" { type = string }
variable "envoy_instances" { type = string }
variable "envoy_leaf" { type = string }
variable "envoy_roots" { type = string }
variable "drained_envoy" { type = string }
variable "otlp_grpc_url" { type = string }

job "edge" {
  type = "service"

  # No canary: two instances cannot use the same port of a node. A cluster has an edge on several nodes.
  update {
    max_parallel      = 1
    min_healthy_time  = "2s"
    healthy_deadline  = "120s"
    progress_deadline = "0s"
    auto_revert       = true
  }

  group "edge" {
    network {
      port "http" { static = var.gateway_port }
      port "ping" {}

      dynamic "port" {
        for_each = var.mesh ? ["https"] : []
        labels   = [port.value]
        content { static = var.gateway_https_port }
      }
    }

    restart {
      interval = "1m"
      attempts = 60
      delay    = "1s"
      mode     = "delay"
    }

    service {
      name     = "edge"
      port     = "http"
      provider = "consul"
      tags     = ["http"]

      check {
        name     = "liveness"
        type     = "http"
        port     = "ping"
        path     = "/ping"
        interval = "2s"
        timeout  = "20s"

        check_restart {
          limit = 16
          grace = "15s"
        }
      }
    }

    task "edge" {
      driver       = "raw_exec"
      kill_signal  = "SIGTERM"
      kill_timeout = "20s"

      # An empty environment: Nomad adds Consul's token to that of each task with an identity for Consul.
      config {
        command = "/usr/bin/env"
        args = [
          "-i", var.python, "-I", "-S", "local/drained_envoy.py", "secrets/admin.sock", "10",
          var.envoy_bin, "--config-path", "local/envoy.yaml",
          "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning",
          "--file-flush-interval-msec", "1000", # of the access log
        ]
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      # For the templates; what Envoy itself gets is empty.
      meta {
        mesh          = var.mesh ? "on" : "off"
        otlp_grpc_url = var.otlp_grpc_url
        trust_domain  = var.mesh ? var.trust_domain : ""
      }

      # With this name Nomad logs in to Consul for the templates of the task, without a `consul` block.
      identity {
        name        = "consul_default"
        aud         = ["consul.io"]
        ttl         = "1h"
        change_mode = "noop"
      }

      # With the agent's default identity for Vault. The token is in a folder that the task cannot read.
      dynamic "vault" {
        for_each = var.mesh ? ["edge"] : []

        content {
          role         = vault.value
          env          = false
          disable_file = true
          change_mode  = "noop"
        }
      }

      template {
        destination     = "local/drained_envoy.py"
        left_delimiter  = "<%"
        right_delimiter = "%>"
        data            = var.drained_envoy
      }

      template {
        destination = "local/envoy.yaml"
        data        = var.envoy_config
      }

      # Envoy reads the file again when it is replaced. Nomad's default would wait 5 s before it renders a change.
      template {
        destination = "local/instances/gateway.json"
        data        = var.envoy_instances
        change_mode = "noop"

        wait {
          min = "50ms"
          max = "200ms"
        }
      }

      # The same for the certificate and the roots.
      dynamic "template" {
        for_each = var.mesh ? { leaf = var.envoy_leaf, roots = var.envoy_roots } : {}

        content {
          destination = "secrets/mesh/${template.key}.json"
          data        = template.value
          perms       = "600"
          change_mode = "noop"

          wait {
            min = "50ms"
            max = "200ms"
          }
        }
      }

      resources {
        cpu    = 300
        memory = 512 # Envoy's own bound is lower (overload_manager in nomad/edge/envoy.yaml)
      }
    }
  }
}
