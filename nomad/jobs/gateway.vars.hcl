# The gateway: REST in, gRPC out. Two instances behind the edge, which finds them in Consul by their tags.

job      = "gateway"
protocol = "http"
actions  = {}

groups = {
  api = { count = 2, service = "gateway", args = [] }
}

# While instances with different router tags run at the same time, Traefik drops the router.
tags = [
  "traefik.enable=true",
  "traefik.http.routers.gateway.rule=PathPrefix(`/`)",
  "traefik.http.routers.gateway.priority=10",
  "traefik.http.routers.gateway.entrypoints=web",
  "traefik.http.routers.gateway.middlewares=lost@file,again@file",
  "traefik.http.services.gateway.loadbalancer.strategy=p2c",
]
