"""What the tests share: rendering, environments, live services, clients, proxies."""
