# Who may call the User Service, by method. Nobody else may: the default is deny.
Kind = "service-intentions"
Name = "user-service"

Sources = [
  {
    Name = "gateway"
    Permissions = [
      { Action = "allow", HTTP = { PathExact = "/shop.user.v1.UserService/RegisterUser" } },
      { Action = "allow", HTTP = { PathExact = "/shop.user.v1.UserService/CreateSession" } },
      { Action = "allow", HTTP = { PathExact = "/shop.user.v1.UserService/GetUser" } },
    ]
  },
  {
    Name = "order-service"
    Permissions = [
      { Action = "allow", HTTP = { PathExact = "/shop.user.v1.UserService/ReserveCredit" } },
      { Action = "allow", HTTP = { PathExact = "/shop.user.v1.UserService/ReleaseCredit" } },
    ]
  },
  {
    # Operators, also by reflection.
    Name   = "operator"
    Action = "allow"
  },
]
