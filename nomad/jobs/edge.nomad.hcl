# The edge: Traefik on the one documented port, before every gateway instance that Consul and Traefik itself find well.

variable "python" { type = string }
variable "traefik_bin" { type = string }
variable "gateway_port" { type = number }
variable "consul_url" { type = string }
variable "sidecar" { type = string }
variable "consul_auth_proxy" { type = string }
variable "error_pages" { type = string }

job "edge" {
  type = "service"

  # No canary: two of them cannot have the same port of one node. On a cluster there is an edge on several nodes.
  update {
    max_parallel      = 1
    min_healthy_time  = "2s"
    healthy_deadline  = "60s"
    progress_deadline = "0s"
    auto_revert       = true
  }

  group "edge" {
    network {
      port "http" { static = var.gateway_port }
      port "ping" {}
      port "error_pages" {}
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
        type     = "http"
        port     = "ping"
        path     = "/ping"
        interval = "2s"
        timeout  = "1s"
      }
    }

    # Two things that Traefik lacks, in one small process. It can only be told a token by file, and never a new one: it asks
    # a door, which logs in by workload identity. And it says in plain text that there is no gateway, or no answer: what is
    # here says so as a problem.
    task "sidecar" {
      driver = "raw_exec"

      lifecycle {
        hook    = "prestart"
        sidecar = true
      }

      config {
        command = var.python
        args = [
          "-I", "-S", "local/sidecar",
          "../alloc/tmp/consul.sock", var.consul_url, "${NOMAD_SECRETS_DIR}/nomad_consul.jwt", "${NOMAD_ADDR_error_pages}",
        ]
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      dynamic "template" {
        for_each = { __main__ = var.sidecar, consul_auth_proxy = var.consul_auth_proxy, error_pages = var.error_pages }

        content {
          destination     = "local/sidecar/${template.key}.py"
          left_delimiter  = "<%"
          right_delimiter = "%>"
          data            = template.value
        }
      }

      identity {
        name        = "consul"
        aud         = ["consul.io"]
        file        = true
        ttl         = "1h"
        change_mode = "noop"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }

    task "edge" {
      driver       = "raw_exec"
      kill_timeout = "20s"

      config {
        command = var.traefik_bin
        args    = ["--configFile=local/traefik.yml"]
      }

      logs {
        max_files     = 3
        max_file_size = 10
      }

      template {
        destination = "local/traefik.yml"
        data        = <<-YAML
          global: { checkNewVersion: false, sendAnonymousUsage: false }
          log: { level: WARN, format: json }

          # Nothing but these two: no dashboard, no API. What callers say of earlier hops is not believed, but replaced.
          entryPoints:
            web:
              address: {{ env "NOMAD_ADDR_http" }}
              http:
                aliasHeadersStrategy: delete
                maxHeaderBytes: 32768 # the gateway refuses earlier, with a problem that says so
              transport:
                respondingTimeouts:
                  readTimeout: 60s # of a whole request; answers may take as long as they like, events do
                  writeTimeout: 0s
                  idleTimeout: 75s
                lifeCycle: { requestAcceptGraceTimeout: 1s, graceTimeOut: 10s }
            ping:
              address: {{ env "NOMAD_ADDR_ping" }}
          ping: { entryPoint: ping }

          # A connection to a gateway is given up before the gateway does so (keep_alive_seconds of its settings):
          # the other way round, a request would now and then be written to one that is just being closed.
          serversTransport:
            maxIdleConnsPerHost: 256
            forwardingTimeouts: { dialTimeout: 1s, responseHeaderTimeout: 20s, idleConnTimeout: 10s }

          providers:
            providersThrottleDuration: 100ms
            consulCatalog:
              endpoint: { address: "unix://../alloc/tmp/consul.sock", scheme: http }
              watch: true
              exposedByDefault: false
              strictChecks: [passing]
            file: { filename: local/routes.yml, watch: false }
        YAML
      }

      template {
        destination = "local/routes.yml"
        data        = <<-YAML
          http:
            middlewares:
              # A request that was not sent is tried again, whatever it is; one that got no answer (502) only if it reads.
              # A killed gateway looks like the less busy one until Consul's check has found it, so the tries last as long
              # as a request may take: pauses grow to twice the first.
              again:
                retry: { attempts: 20, initialInterval: 100ms, status: ["502"] }
              # Whose 503 or 504 it is cannot be told here, and a gateway's must come through; no gateway says 502.
              lost:
                errors: { status: ["502"], service: error_pages, query: "/{status}?at={url}" }
              nowhere:
                errors: { status: ["503"], service: error_pages, query: "/{status}?at={url}" }
              later: # even then, when what the line above asks is away too
                headers: { customResponseHeaders: { Retry-After: "1" } }
            # While there is no gateway: 503, where Traefik would say that the path does not exist.
            routers:
              away: { rule: PathPrefix(`/`), priority: 1, entryPoints: [web], middlewares: [later, nowhere], service: nobody }
            services:
              nobody: { loadBalancer: { servers: [] } }
              error_pages: { loadBalancer: { servers: [{ url: "http://{{ env "NOMAD_ADDR_error_pages" }}" }] } }
        YAML
      }

      resources {
        cpu    = 300
        memory = 256
      }
    }
  }
}
