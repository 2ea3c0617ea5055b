"""What makes a stock pipeline reflect: its scheduler led by a walk, its denoiser switched from role to role."""
