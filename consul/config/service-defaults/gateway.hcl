# Intentions by path need the protocol.
Kind     = "service-defaults"
Name     = "gateway"
Protocol = "http"
