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

      # The kernel accepts connections for a server that hangs, so the check sends a request.
      check {
        type     = "http"
        method   = "HEAD"
        path     = "/"
        interval = "5s"
        timeout  = "20s"

        check_restart {
          limit = 13
          grace = "30s"
        }
      }
    }

    task "artifacts" {
      driver = "raw_exec"

      config {
        # Signals that elsewhere reload a configuration would end this server.
        command = "/bin/sh"
        args = [
          "-c", "trap '' HUP USR1 USR2; exec \"$@\"", "artifacts", var.python,
          "-I", "-S", "local/artifacts.py", "127.0.0.1", "${NOMAD_PORT_http}", var.artifacts_dir,
        ]
      }

      template {
        destination = "local/artifacts.py"
        data        = <<-PY
          """Serves a folder over HTTP; a connection has a thread, so an idle one is closed after half a minute."""

          import functools
          import http.server
          import sys


          class Handler(http.server.SimpleHTTPRequestHandler):
              timeout = 30

              def log_request(self, code="-", size="-"):
                  """Logs only errors, because the health check sends a request every few seconds."""


          address, port, folder = sys.argv[1:]
          handler = functools.partial(Handler, directory=folder)
          server = http.server.ThreadingHTTPServer((address, int(port)), handler)
          print("serves", folder, flush=True)
          server.serve_forever()
        PY
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
