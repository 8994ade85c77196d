# Intentions by method path need the protocol.
Kind     = "service-defaults"
Name     = "user-service"
Protocol = "grpc"
