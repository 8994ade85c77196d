# The gateway: REST in, gRPC out. Two instances behind the edge, which finds them in Consul.

job      = "gateway"
protocol = "http"
mesh     = false
actions  = {}

groups = {
  api = { count = 2, service = "gateway", args = [] }
}

tags = []
