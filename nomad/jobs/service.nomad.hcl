# The job of a service of ours: REST or gRPC, from one zipapp, in one or more groups.
# NAME.vars.hcl fills in what differs for the job NAME. The settings are explained in nomad/README.md.

# From NAME.vars.hcl.
variable "job" { type = string }
variable "protocol" { type = string } # http or grpc: the name of its port, and the kind of its checks
variable "groups" { type = map(object({ count = number, service = string, args = list(string) })) }
variable "mesh" { type = bool } # whether callers need mutual TLS and an intention, or plaintext is for anybody
variable "tags" { type = list(string) }          # in Consul, besides protocol and version
variable "actions" { type = map(list(string)) } # name, and the arguments of the zipapp

# From the stack.
variable "python" { type = string }
variable "artifact_url" { type = string }
variable "artifact_sha256" { type = string }
variable "version" { type = string }
variable "zipapp_cache" { type = string }
variable "consul_url" { type = string }
variable "vault_url" { type = string }
variable "otlp_grpc_url" { type = string }

locals {
  # Nomad puts the token with which it registers a native service into the environment of its task; env removes it.
  program = "/usr/bin/env"
  zipapp  = ["-u", "CONSUL_HTTP_TOKEN", var.python, "-I", "-S", "local/${var.job}.pyz"]
  checks = {
    http = {
      readiness = { name = "readiness", path = "/readyz", grpc_service = "" }
      liveness  = { name = "liveness", path = "/livez", grpc_service = "" }
    }
    grpc = {
      readiness = { name = "grpc health", path = "", grpc_service = "" }
      liveness  = { name = "liveness", path = "", grpc_service = "liveness" }
    }
  }
  check = local.checks[var.protocol]
  # In the mesh the port of a service refuses callers without a certificate of the mesh. Consul has none for its checks, so they
  # get a port of their own, which serves health alone. They only ask how it is, so they do not verify its certificate.
  health_port   = var.mesh ? "health" : var.protocol
  http_protocol = var.mesh && var.protocol == "http" ? "https" : ""
  grpc_use_tls  = var.mesh && var.protocol == "grpc"
}

job "service" {
  id   = var.job
  name = var.job
  type = "service"

  update {
    canary            = 1
    auto_promote      = true
    auto_revert       = true
    max_parallel      = 1
    min_healthy_time  = "2s"
    healthy_deadline  = "120s"
    progress_deadline = "0s"
  }

  migrate {
    max_parallel     = 1
    min_healthy_time = "2s"
    healthy_deadline = "120s"
  }

  reschedule {
    delay          = "5s"
    delay_function = "exponential"
    max_delay      = "1m"
    unlimited      = true
  }

  dynamic "group" {
    for_each = var.groups
    labels   = [group.key]

    content {
      count = group.value.count

      network {
        dynamic "port" {
          for_each = distinct([var.protocol, local.health_port])
          labels   = [port.value]
          content {}
        }
      }

      restart {
        interval = "1m"
        attempts = 60
        delay    = "1s"
        mode     = "delay"
      }

      shutdown_delay = "2s"

      service {
        name     = group.value.service
        port     = var.protocol
        provider = "consul"
        tags     = concat([var.protocol, "version=${var.version}"], var.tags)

        # For the subsets of traffic rules (docs/traffic.md).
        meta {
          version = var.version
        }

        canary_meta {
          version = var.version
          canary  = "true"
        }

        # Consul's mesh has it, so that sidecars of other services find it. The workers answer no calls.
        task = var.mesh && group.value.service == var.job ? var.job : ""

        dynamic "connect" {
          for_each = var.mesh && group.value.service == var.job ? ["native"] : []

          content {
            native = true
          }
        }

        check {
          name            = local.check.readiness.name
          type            = var.protocol
          port            = local.health_port
          path            = local.check.readiness.path
          protocol        = local.http_protocol
          grpc_use_tls    = local.grpc_use_tls
          tls_skip_verify = var.mesh
          interval        = "2s"
          timeout         = "10s"
        }

        check {
          name            = local.check.liveness.name
          type            = var.protocol
          port            = local.health_port
          path            = local.check.liveness.path
          grpc_service    = local.check.liveness.grpc_service
          protocol        = local.http_protocol
          grpc_use_tls    = local.grpc_use_tls
          tls_skip_verify = var.mesh
          interval        = "5s"
          timeout         = "60s"

          # A process ends itself when its loop is stuck; this is for one that cannot even do that.
          check_restart {
            limit = 19
            grace = "120s"
          }
        }
      }

      dynamic "task" {
        for_each = [var.job]
        labels   = [task.value]

        content {
          driver       = "raw_exec"
          kill_timeout = "20s"

          artifact {
            source      = var.artifact_url
            destination = "local/${var.job}.pyz"
            mode        = "file"

            options {
              checksum = "sha256:${var.artifact_sha256}"
            }
          }

          config {
            command = local.program
            args    = concat(local.zipapp, group.value.args)
          }

          # An operator runs these with the identity of the job: ./justw audit-orders, projection-rebuild.
          dynamic "action" {
            for_each = var.actions
            labels   = [action.key]

            content {
              command = local.program
              args    = concat(local.zipapp, action.value)
            }
          }

          env {
            BIND_ADDRESS                = "$${NOMAD_ADDR_${var.protocol}}"
            CONSUL_HTTP_ADDR            = var.consul_url
            HEALTH_ADDRESS              = "$${NOMAD_ADDR_${local.health_port}}"
            IDENTITY_DIR                = "${NOMAD_SECRETS_DIR}"
            INSTANCE_ID                 = "${NOMAD_ALLOC_ID}"
            MESH                        = var.mesh ? "on" : "off"
            OTEL_EXPORTER_OTLP_ENDPOINT = var.otlp_grpc_url
            SHIV_ROOT                   = var.zipapp_cache
            VAULT_ADDR                  = var.vault_url
            VERSION                     = var.version
          }

          identity {
            name        = "consul"
            aud         = ["consul.io"]
            file        = true
            ttl         = "168h"
            change_mode = "noop"
          }

          identity {
            name        = "vault"
            aud         = ["vault.io"]
            file        = true
            ttl         = "168h"
            change_mode = "noop"
          }

          logs {
            max_files     = 3
            max_file_size = 10
          }

          resources {
            cpu    = 200
            memory = 256 # enforced when Nomad runs as root; at rest a process takes about 90
          }
        }
      }
    }
  }
}
