# Serves the built zipapps to Nomad over loopback HTTP; every job compares its download with a checksum.

variable "python" { type = string }
variable "artifacts_dir" { type = string }
variable "artifacts_port" { type = number }

job "artifacts" {
  type = "service"

  update {
    min_healthy_time = "1s"
    healthy_deadline = "120s"
  }

  group "artifacts" {
    network {
      port "http" { static = var.artifacts_port }
    }

    restart {
      interval = "1m"
      attempts = 20
      delay    = "1s"
      mode     = "delay"
    }

    service {
      name     = "artifacts"
      port     = "http"
      provider = "consul"

      check {
        type     = "tcp" # an HTTP request would write a line to the log
        interval = "5s"
        timeout  = "2s"
      }
    }

    task "artifacts" {
      driver = "raw_exec"

      config {
        # Signals that elsewhere reload a configuration would end this server.
        command = "/bin/sh"
        args = [
          "-c", "trap '' HUP USR1 USR2; exec \"$@\"", "artifacts", var.python,
          "-m", "http.server", "${NOMAD_PORT_http}",
          "--bind", "127.0.0.1", "--directory", var.artifacts_dir,
        ]
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      resources {
        cpu    = 50
        memory = 64
      }
    }
  }
}
