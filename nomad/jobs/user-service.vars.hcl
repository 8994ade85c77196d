# The User Service: two instances, and the caller picks one of them for each call.

job      = "user-service"
protocol = "grpc"
mesh     = false
tags     = []

groups = {
  api = { count = 2, service = "user-service", args = [] }
}

actions = {
  audit = ["audit"]
}
