# The edge: Traefik listens on the documented port and forwards to the healthy instances of the gateway.

variable "python" { type = string }
variable "traefik_bin" { type = string }
variable "gateway_port" { type = number }
variable "consul_url" { type = string }
variable "sidecar" { type = string }
variable "consul_auth_proxy" { type = string }
variable "error_pages" { type = string }

job "edge" {
  type = "service"

  # No canary: two instances cannot use the same port of a node. A cluster has an edge on several nodes.
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

    # Adds what Traefik lacks. Traefik reads a token of Consul once and cannot renew it, so it sends its requests through
    # a proxy that logs in by workload identity. And its own errors are plain text; the error pages are RFC 9457 problems.
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

          # No other entry points: no dashboard, no API. Forwarded headers of callers are not trusted, but replaced.
          entryPoints:
            web:
              address: {{ env "NOMAD_ADDR_http" }}
              http:
                aliasHeadersStrategy: delete
                maxHeaderBytes: 32768 # the gateway has a lower limit, and responds with a problem
              transport:
                respondingTimeouts:
                  readTimeout: 60s # of a whole request; responses have no limit, because event streams stay open
                  writeTimeout: 0s
                  idleTimeout: 75s
                lifeCycle: { requestAcceptGraceTimeout: 1s, graceTimeOut: 10s }
            ping:
              address: {{ env "NOMAD_ADDR_ping" }}
          ping: { entryPoint: ping }

          # The edge closes an idle connection before the gateway does (keep_alive_seconds of its settings). Otherwise
          # a request is sometimes written to a connection that the gateway is just closing.
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
              # A request that was not sent is always retried; a request without a response (502) only if it is safe.
              # Until Consul's check fails, a killed gateway looks like the less busy one. So the attempts last as long
              # as a request may take; the delay grows to twice the first.
              again:
                retry: { attempts: 20, initialInterval: 100ms, status: ["502"] }
              # Replaces only 502: a 503 or 504 may come from a gateway and must be forwarded, a 502 never does.
              lost:
                errors: { status: ["502"], service: error_pages, query: "/{status}?at={url}" }
              unavailable:
                errors: { status: ["503"], service: error_pages, query: "/{status}?at={url}" }
              retry_after: # also while the error pages are unavailable
                headers: { customResponseHeaders: { Retry-After: "1" } }
            # Responds with 503 while no gateway is healthy; Traefik itself would respond with 404.
            routers:
              no_gateway:
                rule: PathPrefix(`/`)
                priority: 1
                entryPoints: [web]
                middlewares: [retry_after, unavailable]
                service: no_server
            services:
              no_server: { loadBalancer: { servers: [] } }
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
