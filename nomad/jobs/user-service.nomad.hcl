# The User Service: two instances behind client-side balancing.

variable "python" { type = string }
variable "run_logged" { type = string }
variable "artifact_url" { type = string }
variable "artifact_sha256" { type = string }
variable "version" { type = string }
variable "zipapp_cache" { type = string }
variable "consul_url" { type = string }
variable "vault_url" { type = string }
variable "otlp_grpc_url" { type = string }

job "user-service" {
  type = "service"

  # What these settings are for stands in nomad/README.md.
  update {
    canary            = 1
    auto_promote      = true
    auto_revert       = true
    max_parallel      = 1
    min_healthy_time  = "2s"
    healthy_deadline  = "60s"
    progress_deadline = "0s"
  }

  migrate {
    max_parallel     = 1
    min_healthy_time = "2s"
    healthy_deadline = "60s"
  }

  reschedule {
    delay          = "5s"
    delay_function = "exponential"
    max_delay      = "1m"
    unlimited      = true
  }

  group "api" {
    count = 2

    network {
      port "grpc" {}
    }

    restart {
      interval = "1m"
      attempts = 60
      delay    = "1s"
      mode     = "delay"
    }

    shutdown_delay = "2s"

    service {
      name     = "user-service"
      port     = "grpc"
      provider = "consul"
      tags     = ["grpc", "version=${var.version}"]

      check {
        name     = "grpc health"
        type     = "grpc"
        interval = "1s"
        timeout  = "5s"
      }

      check {
        name         = "liveness"
        type         = "grpc"
        grpc_service = "liveness"
        interval     = "1s"
        timeout      = "5s"

        check_restart {
          limit = 46
          grace = "30s"
        }
      }
    }

    task "user-service" {
      driver       = "raw_exec"
      kill_timeout = "20s"

      artifact {
        source      = var.artifact_url
        destination = "local/user-service.pyz"
        mode        = "file"

        options {
          checksum = "sha256:${var.artifact_sha256}"
        }
      }

      config {
        command = "/bin/sh"
        args    = ["-c", var.run_logged, "sh", var.python, "-OO", "-I", "-S", "local/user-service.pyz"]
      }

      logs {
        disabled = true # it writes its log itself, where Nomad looks for it: see nomad/README.md
      }

      # What an operator does from inside, with the identity of the job: ./justw audit-orders.
      action "audit" {
        command = var.python
        args    = ["-OO", "-I", "-S", "local/user-service.pyz", "audit"]
      }

      env {
        BIND_ADDRESS                = "${NOMAD_ADDR_grpc}"
        CONSUL_HTTP_ADDR            = var.consul_url
        IDENTITY_DIR                = "${NOMAD_SECRETS_DIR}"
        INSTANCE_ID                 = "${NOMAD_ALLOC_ID}"
        MALLOC_MMAP_THRESHOLD_      = "131072"
        OTEL_EXPORTER_OTLP_ENDPOINT = var.otlp_grpc_url
        SHIV_ROOT                   = var.zipapp_cache
        VAULT_ADDR                  = var.vault_url
        VERSION                     = var.version
      }

      identity {
        name        = "consul"
        aud         = ["consul.io"]
        file        = true
        ttl         = "1h"
        change_mode = "noop"
      }

      identity {
        name        = "vault"
        aud         = ["vault.io"]
        file        = true
        ttl         = "1h"
        change_mode = "noop"
      }

      resources {
        cpu    = 200
        memory = 256 # enforced when Nomad runs as root; at rest a process takes about 90
      }
    }
  }
}
