# Who may send requests to the gateway. Nobody else may: the default is deny. The edge forwards every path, also one
# that does not exist, so its permission names none; the gateway checks the user.
Kind = "service-intentions"
Name = "gateway"

Sources = [
  {
    Name   = "edge"
    Action = "allow"
  },
  {
    Name   = "operator"
    Action = "allow"
  },
]
