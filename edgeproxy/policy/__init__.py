"""What is promised to those whose data pass: profiles, the claims that they make, and what proves each of them."""
