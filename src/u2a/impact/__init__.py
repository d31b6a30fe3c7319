"""Impact of each negative: dJ(φ*(ω))/dω_i, and its price dU/dω_i with the sign turned."""
