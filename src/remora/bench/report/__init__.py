"""What records of measurements say, as one page with pictures and tables: `remora bench report FILES`."""
