# Who may call the Order Service, by method. Nobody else may: the default is deny.
Kind = "service-intentions"
Name = "order-service"

Sources = [
  {
    Name = "gateway"
    Permissions = [
      { Action = "allow", HTTP = { PathExact = "/shop.order.v1.OrderService/PlaceOrder" } },
      { Action = "allow", HTTP = { PathExact = "/shop.order.v1.OrderService/GetOrder" } },
      { Action = "allow", HTTP = { PathExact = "/shop.order.v1.OrderService/ListOrders" } },
      { Action = "allow", HTTP = { PathExact = "/shop.order.v1.OrderService/CancelOrder" } },
      { Action = "allow", HTTP = { PathExact = "/shop.order.v1.OrderService/ListOrderEvents" } },
      { Action = "allow", HTTP = { PathExact = "/shop.order.v1.OrderService/WatchOrder" } },
    ]
  },
  {
    # Operators, also by reflection.
    Name   = "operator"
    Action = "allow"
  },
]
