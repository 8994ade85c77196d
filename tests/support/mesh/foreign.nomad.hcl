# Services that know nothing of the mesh, each with a sidecar of its own: an HTTP server, and a client of the User Service.

variable "node_pool" { type = string }
variable "envoy" { type = string }

locals {
  # Envoy finds Consul at a socket below its working directory.
  sidecar = "cd $${NOMAD_ALLOC_DIR}/.. && exec ${var.envoy} -c $${NOMAD_SECRETS_DIR}/envoy_bootstrap.json --disable-hot-restart --concurrency 1 --log-level warning"
}

job "foreign" {
  node_pool = var.node_pool

  group "server" {
    network {
      mode = "bridge"
    }

    service {
      name = "foreign-server"
      port = "9090"

      connect {
        sidecar_service {}

        sidecar_task {
          driver = "raw_exec"

          config {
            command = "/bin/sh"
            args    = ["-c", local.sidecar]
          }
        }
      }
    }

    task "server" {
      driver = "raw_exec"

      config {
        command = "/usr/bin/python3"
        args    = ["-m", "http.server", "9090", "--bind", "127.0.0.1", "--directory", "local"]
      }

      template {
        destination = "local/open"
        data        = "anybody"
      }

      template {
        destination = "local/closed"
        data        = "nobody"
      }
    }
  }

  group "client" {
    network {
      mode = "bridge"
    }

    service {
      name = "foreign-client"
      port = "9999" # it answers no calls

      connect {
        sidecar_service {
          proxy {
            upstreams {
              destination_name = "user-service"
              local_bind_port  = 9001
            }
          }
        }

        sidecar_task {
          driver = "raw_exec"

          config {
            command = "/bin/sh"
            args    = ["-c", local.sidecar]
          }
        }
      }
    }

    task "client" {
      driver = "raw_exec"

      config {
        command = "/bin/sleep"
        args    = ["infinity"]
      }
    }
  }
}
