# Receives OTLP traces, metrics and logs and shows them; its store is bounded.

variable "telemetry_bin" { type = string }
variable "telemetry_port" { type = number }
variable "otlp_grpc_port" { type = number }
variable "otlp_http_port" { type = number }

job "telemetry" {
  type = "service"

  update {
    min_healthy_time = "1s"
    healthy_deadline = "120s"
  }

  group "telemetry" {
    network {
      port "ui" { static = var.telemetry_port }
      port "otlp_grpc" { static = var.otlp_grpc_port }
      port "otlp_http" { static = var.otlp_http_port }
    }

    restart {
      interval = "1m"
      attempts = 20
      delay    = "1s"
      mode     = "delay"
    }

    service {
      name     = "telemetry"
      port     = "ui"
      provider = "consul"

      check {
        type     = "http"
        path     = "/"
        interval = "5s"
        timeout  = "20s"

        # Its data is lost then, but a server that hangs loses all new data.
        check_restart {
          limit = 13
          grace = "30s"
        }
      }
    }

    task "telemetry" {
      driver = "raw_exec"

      config {
        command = var.telemetry_bin
        args = [
          "--host", "127.0.0.1", "--open-browser=false",
          "--browser-port", "${NOMAD_PORT_ui}",
          "--grpc", "${NOMAD_PORT_otlp_grpc}",
          "--http", "${NOMAD_PORT_otlp_http}",
          # In memory: with a file, every batch of every process waits for the disk, and the UI with it.
          "--db-max-size", "60MB",
        ]
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      env {
        GOMAXPROCS = "1" # leaves the other processors to the services it observes
      }

      resources {
        cpu    = 200
        memory = 512 # enforced when Nomad runs as root; the store grows to 60 MB, its queries beyond
      }
    }
  }
}
