# The Order Service: `api` answers calls; `worker` updates read tables and drives each order through its steps.

job      = "order-service"
protocol = "grpc"
mesh     = false
tags     = []

groups = {
  api    = { count = 2, service = "order-service", args = [] }
  worker = { count = 2, service = "order-service-worker", args = ["worker"] }
}

actions = {
  audit          = ["audit"]
  rebuild-orders = ["rebuild", "orders"]
}
