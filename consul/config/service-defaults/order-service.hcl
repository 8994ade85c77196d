# Intentions by method path need the protocol.
Kind     = "service-defaults"
Name     = "order-service"
Protocol = "grpc"
